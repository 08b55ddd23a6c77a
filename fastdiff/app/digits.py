"""The class-conditional 8x8 digit network, small enough to ship with the package.

`DigitsNet` is the raw network F of

    D(x; sigma, y) = c_skip x + c_out F(c_in x; c_noise, y)

(Karras et al. 2022, arXiv:2206.00364, eq. 7), a U-net over two resolutions. It was trained on
the 8x8 digits of Alpaydin and Kaynak (1998, doi:10.24432/C50P49) by `examples/train_digits.py`.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from fastdiff.errors import CheckpointError

CLASSES = 10
CHECKPOINT = Path(__file__).parents[1] / "data" / "digits.safetensors"
FINE, COARSE, EMBEDDING, GROUPS, HARMONICS = 48, 96, 192, 8, 16


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Return `layer` with weight and bias set to zero, so that what it ends adds nothing yet."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Residual(nn.Module):
    """Two 3x3 convolutions, the second modulated by the embedding (FiLM, arXiv:1709.07871).

    h + conv(silu(norm(conv(silu(norm(h)))) (1 + scale) + shift)), with scale and shift affine
    in the embedding.
    """

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(GROUPS, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.film = nn.Linear(EMBEDDING, 2 * channels)
        self.norm_out = nn.GroupNorm(GROUPS, channels)
        self.conv_out = zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip = nn.Identity() if channels == channels_in else nn.Conv2d(channels_in, channels, 1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Map `h` [B, channels_in, H, W] and `embedding` [B, 192] to [B, channels, H, W]."""
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        r = self.conv_in(functional.silu(self.norm_in(h)))
        r = self.conv_out(functional.silu(self.norm_out(r) * (1 + scale) + shift))
        return self.skip(h) + r


class Attention(nn.Module):
    """Single-head self-attention over the pixels, h + W softmax(q^T k / sqrt(C)) v."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        """Map `h` [B, C, H, W] to the same shape."""
        q, k, v = self.qkv(self.norm(h)).flatten(2).chunk(3, dim=1)
        # Written out because the fused attention of torch has no forward-mode or second derivative.
        weight = (q.transpose(1, 2) @ k * h.shape[1] ** -0.5).softmax(dim=2)
        return h + self.out((v @ weight.transpose(1, 2)).view_as(h))


class DigitsNet(nn.Module):
    """The raw network F(c_in x; c_noise, y) on 8x8 images; zero everywhere when new.

    The noise level enters as the Fourier series cos(k c_noise), sin(k c_noise), k = 1...16, whose
    period 2 pi covers c_noise = ln(sigma)/4 from sigma = 0.002 to 80 (a length of 2.65) once.
    """

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Small integers are exact in every dtype, so `net.to(dtype)` may convert this buffer.
        frequencies = torch.arange(1.0, HARMONICS + 1)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embed_noise = nn.Linear(2 * HARMONICS, EMBEDDING)
        self.embed_class = nn.Linear(CLASSES, EMBEDDING, bias=False)
        self.embed = nn.Linear(EMBEDDING, EMBEDDING)
        self.enter = nn.Conv2d(1, FINE, 3, padding=1)
        self.encode = nn.ModuleList([Residual(FINE, FINE), Residual(FINE, FINE)])
        self.down = nn.Conv2d(FINE, COARSE, 3, stride=2, padding=1)
        self.middle = nn.ModuleList([Residual(COARSE, COARSE), Residual(COARSE, COARSE)])
        self.attention = Attention(COARSE)
        self.up = nn.Conv2d(COARSE, FINE, 3, padding=1)
        self.decode = nn.ModuleList([Residual(2 * FINE, FINE), Residual(2 * FINE, FINE)])
        self.norm = nn.GroupNorm(GROUPS, FINE)
        self.leave = zero(nn.Conv2d(FINE, 1, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor) -> Tensor:
        """Evaluate F.

        Args:
            x: The scaled image c_in x, [B, 1, 8, 8], any floating dtype.
            c_noise: ln(sigma)/4, [B], [1] or 0-dimensional, any floating dtype.
            class_labels: One-hot [B, 10], any dtype; an all-zero row means unconditional.

        Returns:
            F, [B, 1, 8, 8], in the dtype of the parameters.
        """
        embedding = self.embedding(c_noise.reshape(-1).expand(len(x)), class_labels)
        h = self.enter(x.to(self.enter.weight.dtype))
        skips = []
        for block in self.encode:
            h = block(h, embedding)
            skips.append(h)
        h = self.middle[0](self.down(h), embedding)
        h = self.middle[1](self.attention(h), embedding)
        h = functional.interpolate(self.up(h), scale_factor=2.0)
        for block in self.decode:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.leave(functional.silu(self.norm(h)))

    def embedding(self, c_noise: Tensor, class_labels: Tensor) -> Tensor:
        """Embed `c_noise` [B] and `class_labels` [B, 10] as [B, 192], dtype of the parameters."""
        dtype = self.frequencies.dtype
        # A phase up to 16 * 1.6 rad has no useful digits in a 16-bit dtype.
        wide = torch.promote_types(torch.promote_types(c_noise.dtype, dtype), torch.float32)
        phase = c_noise.to(wide)[:, None] * self.frequencies.to(wide)
        waves = torch.cat([phase.cos(), phase.sin()], dim=1).to(dtype)
        hidden = self.embed_noise(waves) + self.embed_class(class_labels.to(dtype))
        return functional.silu(self.embed(functional.silu(hidden)))


def load_digits(
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[DigitsNet, dict[str, str]]:
    """Load a trained `DigitsNet` and the facts recorded with it.

    Args:
        path: A safetensors file written by `examples/train_digits.py`; None is the shipped one.
        device: Where the network goes.
        dtype: Floating dtype of its parameters, hence of its computation and output.

    Returns:
        The network, in eval mode with `requires_grad` False, and the metadata of the file:
        "sigma_data" (data units, data in [-1, 1]), "steps", "loss", "parameters", ... as text.

    Raises:
        CheckpointError: The file is not safetensors, or does not hold this network.
        FileNotFoundError: There is no file at `path`.
    """
    path = CHECKPOINT if path is None else Path(path)
    # New weights are drawn only to be overwritten; the caller's generator should not notice.
    with torch.random.fork_rng(devices=[]):
        net = DigitsNet()
    try:
        with safe_open(path, framework="pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a safetensors file ({error}). Only safetensors is read, never a pickle "
            "(.pt, .pth, .pkl), which can run code. Write it with safetensors.torch.save_file."
        ) from error
    expected = {name: tensor.shape for name, tensor in net.state_dict().items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = sorted(n for n in expected | found if expected.get(n) != found.get(n))
    if wrong:
        raise CheckpointError(
            f"{path} does not hold a DigitsNet: {len(wrong)} tensors are missing, unknown or of "
            f"another shape, the first {wrong[0]!r}. Write it with examples/train_digits.py."
        )
    if "sigma_data" not in facts:
        raise CheckpointError(
            f"{path} has no 'sigma_data' in its metadata, without which the network has no units. "
            "Write it with examples/train_digits.py."
        )
    net.load_state_dict(tensors)
    return net.to(device, dtype).eval().requires_grad_(False), facts
