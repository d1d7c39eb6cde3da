"""Stage ``quantize``, and the files of the blocks that it leaves."""
