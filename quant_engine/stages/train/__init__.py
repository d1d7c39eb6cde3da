"""The three kinds of stage ``train``: channel scales, whole blocks, rotations of the whole model."""
