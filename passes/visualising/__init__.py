"""Activation maximisation: what each unit of a layer looks for, as an image; sheets and clusters of these."""
