"""A new program without some units, or with some of them merged."""
