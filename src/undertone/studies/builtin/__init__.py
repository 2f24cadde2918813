"""The built-in studies, one file each; the name of the file is the kind in a config."""
