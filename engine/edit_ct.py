"""CT, of the challenge of 2023 (arXiv 2410.01276): the kernels of convolutions are transposed, and a training on retain
rows follows.
"""

from torch import Tensor


def transpose(weight: Tensor) -> Tensor:
    """A convolution's weights (made, taken, height, width) with height and width exchanged; kernels that are not square
    stay as they are.
    """
    return weight.transpose(2, 3).contiguous() if weight.shape[2] == weight.shape[3] else weight
