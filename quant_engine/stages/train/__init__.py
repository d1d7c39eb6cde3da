"""The three kinds of stage ``train``: channel scales, whole blocks, and rotations of the whole model."""
