"""What happens to the input of a quantized linear at run time, as pure functions of tensors.

Our loader uses them, and a serving engine's plugin may: nothing here imports more than torch.
"""
