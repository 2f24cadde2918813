"""The transfer experiment: teachers, data, filters, students, controls, evaluation, verdict."""
