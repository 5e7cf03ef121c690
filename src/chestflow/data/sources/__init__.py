"""One adapter per public data set; each reads the layout in which its source ships it."""
