"""Why it happens: the studies of arXiv 2606.00995, each with the control it lacked."""
