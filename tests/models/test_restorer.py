import dataclasses

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from tta_restore import models
from tta_restore.models import RestorerSpec, SizeRequirements, as_restorer, probe
from tta_restore.models.restorer.spec import pad


class Strict(nn.Module):
    """Refuses sides that are no multiple of 8, as U-Nets do."""

    def __init__(self, multiple=8, scale=1, square=False, minimum=1, silent=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.multiple, self.scale, self.square, self.minimum, self.silent = multiple, scale, square, minimum, silent

    def forward(self, x):
        height, width = x.shape[-2:]
        if height % self.multiple or width % self.multiple:
            if self.silent:
                return x[..., : height // self.multiple * self.multiple, : width // self.multiple * self.multiple]
            raise RuntimeError("sizes do not match")
        if (self.square and height != width) or min(height, width) < self.minimum:
            raise RuntimeError("not my size")
        return nn.functional.interpolate(self.conv(x), scale_factor=self.scale) if self.scale > 1 else self.conv(x)


@dataclasses.dataclass
class Result:
    result: torch.Tensor
    filters: torch.Tensor


class Returning(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(3, 3, 3, padding=1), wrap

    def forward(self, x):
        return self.wrap(self.conv(x))


HALF = nn.AvgPool2d(2)
STRUCTURES = {
    "coarse to fine": (lambda y: [HALF(y), y], (1,)),
    "fine to coarse": (lambda y: (y, HALF(y)), (0,)),
    "stages of one size": (lambda y: (y, y - 1, y - 2), (0,)),
    "image and score": (lambda y: {"quality": y.mean((1, 2, 3)), "image": y}, ("image",)),
    "features and image": (lambda y: {"features": y.repeat(1, 4, 1, 1), "image": y}, ("image",)),
    "object": (lambda y: Result(result=y, filters=y.repeat(1, 9, 1, 1)), ("result",)),
}


@pytest.mark.parametrize(("wrap", "path"), STRUCTURES.values(), ids=STRUCTURES)
def test_the_image_is_found_and_the_structure_kept(wrap, path):
    net, x = Returning(wrap), torch.rand(1, 3, 20, 24)
    restored = as_restorer(net).restore(x)
    assert restored.path == path
    assert torch.equal(restored.image, net.conv(x))
    output = restored.with_image(restored.image * 0).output()
    found, expected = dict(models.restorer.outputs.leaves(output)), dict(models.restorer.outputs.leaves(net(x)))
    assert type(output) is type(net(x))
    assert found.pop(path).abs().max() == 0
    expected.pop(path)
    assert all(torch.equal(found[key], expected[key]) for key in expected | found)


def test_a_declared_output_wins():
    net, x = Returning(lambda y: (y, y - 1, {"last": y - 2})), torch.rand(1, 3, 8, 8)
    for output, offset in [(1, 1), ((2, "last"), 2), (-2, 1), (lambda raw: raw[2]["last"], 2)]:
        restorer = as_restorer(net, RestorerSpec(output=output))
        torch.testing.assert_close(restorer(x), net.conv(x) - offset)
    with pytest.raises(ValueError, match=r"no tensor at \['image'\]; there are: \[0\], \[1\], \[2, 'last'\]"):
        as_restorer(net, RestorerSpec(output="image"))(x)
    with pytest.raises(ValueError, match="must return one of the tensors"):
        as_restorer(net, RestorerSpec(output=lambda raw: raw[0] * 2))(x)


@pytest.mark.parametrize("net", [
    Strict(), Strict(1), Strict(2, silent=True), Strict(16, minimum=48), Strict(8, scale=2), Strict(128, square=True),
    Strict(3 * 0 + 4, scale=3), Strict(3), Strict(6), Strict(7), Strict(14, minimum=28), Strict(12, scale=2),
    Strict(24, square=True), Strict(48), Strict(112),
])  # fmt: skip
def test_sizes_and_scale_are_measured_and_any_frame_runs(net):
    restorer = as_restorer(net)
    assert restorer.spec is None
    for height, width in [(61, 67), (9, 200), (3, 5)]:
        assert restorer(torch.rand(1, 3, height, width)).shape[-2:] == (height * net.scale, width * net.scale)
    size = restorer.spec.size
    assert (size.multiple_of, size.square, restorer.spec.scale) == (net.multiple, net.square, net.scale)
    assert net.minimum <= size.minimum < net.minimum + net.multiple


class OneSize(nn.Module):
    """Takes a single square size; shuffles pixels up by ``scale``."""

    def __init__(self, side, scale=1, border=0, width=None):
        super().__init__()
        self.sides, self.scale, self.border = (side, width or side), scale, border
        self.mix = nn.Conv2d(3, 3 * scale**2, 1)

    def forward(self, x):
        if x.shape[-2:] != self.sides:
            raise RuntimeError(f"expected {self.sides} pixels")
        inner = [slice(self.scale * self.border, self.scale * (side - self.border)) for side in self.sides]
        return nn.functional.pixel_shuffle(self.mix(x), self.scale)[..., inner[0], inner[1]]


@pytest.mark.parametrize("side", [16, 32, 40, 48, 64, 96, 112, 128, 224, 256, 384, 512])
def test_a_model_of_one_size_restores_any_frame_in_tiles(side):
    net, x = OneSize(side), torch.rand(2, 3, 70, 310)
    restorer = as_restorer(net)
    torch.testing.assert_close(restorer(x), net.mix(x))
    assert restorer.spec.size == SizeRequirements(side, side, True, side)


def test_a_model_of_one_size_that_is_not_square_is_measured_on_a_frame_or_declared():
    net, x = OneSize(40, width=48), torch.rand(1, 3, 70, 90)
    with pytest.raises(
        ValueError, match=r"declare .* of a single size, such as .*SizeRequirements\(minimum=\(96, 160\)"
    ):
        probe(net)
    found = probe(net, torch.rand(1, 3, 40, 48))
    assert found.spec.size == SizeRequirements((40, 48), maximum=(40, 48))
    assert "at least 40x48, at most 40x48" in str(found)
    restorer = as_restorer(net)
    torch.testing.assert_close(restorer(x[..., :40, :48]), net.mix(x[..., :40, :48]))
    torch.testing.assert_close(restorer(x), net.mix(x))


@pytest.mark.parametrize(("scale", "border"), [(1, 0), (2, 0), (3, 0), (1, 4)])
@pytest.mark.parametrize("shape", [(20, 20), (32, 32), (33, 90), (100, 7)])
@pytest.mark.parametrize("width", [32, 40])
def test_tiles_of_a_declared_size_give_the_image_and_gradients(scale, border, shape, width):
    net, x = OneSize(32, scale, border, width), torch.rand(2, 3, *shape)
    spec = RestorerSpec(scale=scale, border=border, size=SizeRequirements((32, width), maximum=(32, width)))
    image = as_restorer(net, spec)(x)
    expected = nn.functional.pixel_shuffle(net.mix(x), scale)
    torch.testing.assert_close(image, expected)
    weights = torch.rand_like(expected)
    found, wanted = (torch.autograd.grad((one * weights).sum(), net.mix.weight)[0] for one in (image, expected))
    torch.testing.assert_close(found, wanted)


def test_a_largest_side_that_is_no_multiple_is_rounded_down():
    shapes = []

    def model(x):
        shapes.append(tuple(x.shape[-2:]))
        return x.clone()

    x = torch.rand(1, 3, 50, 130)
    spec = RestorerSpec(size=SizeRequirements(multiple_of=8, maximum=63))
    torch.testing.assert_close(as_restorer(model, spec)(x), x)
    assert set(shapes) == {(56, 56)}
    with pytest.raises(ValueError, match="SizeRequirements: expected maximum .* >= 64"):
        SizeRequirements(minimum=60, multiple_of=64, maximum=63)
    with pytest.raises(ValueError, match="sides above twice the border, got a largest side of 56 and border = 28"):
        RestorerSpec(border=28, size=SizeRequirements(multiple_of=8, maximum=63))


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_model_of_one_channel_restores_color_frames_channel_by_channel(declared, scale):
    class Gray(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Conv2d(1, scale**2, 3, padding=1)

        def forward(self, x, gain=1.0):
            y = nn.functional.pixel_shuffle(self.mix(x), scale) * gain
            return {"half": y[..., ::2, ::2], "image": y, "mean": y.mean()}

    net, x, gain = Gray(), torch.rand(2, 3, 12, 17), torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    restorer = as_restorer(net, RestorerSpec(in_channels=1, scale=scale) if declared else None)
    expected = torch.cat([net(channel)["image"] for channel in x.split(1, 1)], 1)
    torch.testing.assert_close(restorer(x), expected)
    torch.testing.assert_close(restorer(x, gain=gain), expected * gain)
    torch.testing.assert_close(restorer.restore(x).output()["half"], expected[..., ::2, ::2])
    torch.testing.assert_close(restorer(x[:, :1]), expected[:, :1])
    assert restorer.spec.in_channels == 1
    with pytest.raises(ValueError, match="expected x of shape"):
        restorer(torch.rand(1, 2, 12, 12))


def test_maps_are_cut_with_the_tiles():
    spec = RestorerSpec(size=SizeRequirements(16, 16, maximum=16))
    x, sigma = torch.rand(1, 3, 40, 30), torch.rand(1, 1, 40, 30)
    torch.testing.assert_close(as_restorer(lambda x, sigma: x + sigma, spec)(x, sigma=sigma), x + sigma)


def test_a_legal_frame_is_given_as_it_is():
    net, x = Strict(), torch.rand(2, 3, 16, 24)
    assert torch.equal(as_restorer(net, RestorerSpec(size=SizeRequirements(multiple_of=8)))(x), net(x))


@hypothesis.given(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 2, 8, 16]), st.integers(1, 40), st.booleans()
)
def test_padding_is_legal_minimal_and_keeps_the_frame(height, width, multiple, minimum, square):
    size = SizeRequirements(minimum, multiple, square)
    x = torch.rand(1, 3, height, width)
    padded = pad(x, size)
    sides = padded.shape[-2:]
    assert torch.equal(padded[..., :height, :width], x)
    assert all(side % multiple == 0 and side >= minimum for side in sides)
    assert not square or sides[0] == sides[1]
    least = [-(-max(side, minimum) // multiple) * multiple for side in (height, width)]
    assert list(sides) == ([max(least)] * 2 if square else least)
    assert padded.min() >= x.min()
    assert padded.max() <= x.max()


def test_value_range_is_mapped_at_the_border():
    seen = []

    class Bytes(nn.Module):
        def forward(self, x):
            seen.append(x.max().item())
            return x + 25.5

    restorer = as_restorer(Bytes(), RestorerSpec(value_range=(0, 255)))
    torch.testing.assert_close(restorer(torch.ones(1, 3, 4, 4)), torch.full((1, 3, 4, 4), 1.1))
    assert seen == [255.0]
    signed = as_restorer(lambda x: x, RestorerSpec(value_range=(-1, 1)))
    x = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(signed(x), x)


def test_nothing_is_clamped_and_gradients_pass():
    net, x = Returning(lambda y: [y * 50]), torch.rand(1, 3, 9, 10, requires_grad=True)
    image = as_restorer(net, RestorerSpec(size=SizeRequirements(multiple_of=8)))(x)
    assert image.max() > 1 or image.min() < 0
    image.sum().backward()
    assert x.grad.abs().min() > 0
    assert net.conv.weight.grad is not None


def test_a_model_may_write_into_its_input():
    def writes(x):
        return x.mul_(2)

    x = torch.rand(1, 3, 8, 8)
    before = x.clone()
    assert torch.equal(as_restorer(writes)(x), before * 2)
    assert torch.equal(x, before)


def test_one_image_at_a_time():
    class Single(nn.Module):
        def forward(self, x):
            if x.shape[0] != 1:
                raise RuntimeError("batch of one")
            return {"image": x * x.mean(), "mean": x.mean((1, 2, 3)), "constant": torch.tensor(3.0)}

    x = torch.rand(3, 3, 8, 8)
    output = as_restorer(Single(), RestorerSpec(batched=False)).restore(x).output()
    torch.testing.assert_close(output["image"], x * x.mean((1, 2, 3), keepdim=True))
    assert output["mean"].shape == (3,)
    assert output["constant"].item() == 3


def test_clips_and_functions_and_half_models_run():
    clip = torch.rand(1, 5, 3, 12, 10)
    center = as_restorer(lambda x: x[:, 2] * 2)
    torch.testing.assert_close(center(clip), clip[:, 2] * 2)
    assert center.spec.frames is None
    half = as_restorer(Strict(1).to(torch.bfloat16))
    assert half(torch.rand(1, 3, 8, 8)).dtype == torch.float32
    assert half(torch.rand(1, 3, 8, 8).to(torch.bfloat16)).dtype == torch.bfloat16


def test_a_spec_of_another_type_is_refused():
    with pytest.raises(TypeError, match="expected spec to be a RestorerSpec, got dict"):
        as_restorer(nn.Identity(), {"scale": 2})


def test_wrappers_are_taken_off_and_specs_kept():
    net = Strict()
    assert as_restorer(nn.DataParallel(net)).module is net
    restorer = as_restorer(net)
    assert as_restorer(restorer) is restorer
    net.spec = RestorerSpec(scale=1, size=SizeRequirements(multiple_of=8))
    assert as_restorer(net).spec is net.spec
    assert as_restorer(net, RestorerSpec()).spec == RestorerSpec()
    with pytest.raises(TypeError, match="got int"):
        as_restorer(3)


@pytest.mark.parametrize(("x", "error", "message"), [
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "divide by 255"),
    (torch.zeros(3, 8, 8), ValueError, r"\(B, C, H, W\).*got \(3, 8, 8\)"),
    (torch.zeros(1, 1, 8, 8), ValueError, r"any, 3, any, any\), got \(1, 1, 8, 8\)"),
    (torch.zeros(1, 3, 8, 8, device="meta"), ValueError, "model's device cpu, got meta"),
    ([1, 2], TypeError, "torch.Tensor, got list"),
])  # fmt: skip
def test_bad_frames_are_refused_in_the_callers_words(x, error, message):
    with pytest.raises(error, match=message):
        as_restorer(Strict(), RestorerSpec(in_channels=3))(x)


def test_a_model_that_returns_no_image_is_explained():
    for model, gave in (
        (lambda x: x.mean((1, 2, 3)), r"\[\]: \(1,\)"),
        (lambda x: x[..., 2:-3, 2:-2], r"\[\]: \(1, 3, 3, 4\)"),
        (lambda x: "done", "str"),
    ):
        with pytest.raises(ValueError, match=f"found no image in the model's output .* where it gave {gave}; declare"):
            as_restorer(model)(torch.rand(1, 3, 8, 8))
    with pytest.raises(
        ValueError, match=r"\(\.\.\., 16, 16\) for an input of 8x8 at scale 2, got \[\]: \(1, 3, 8, 8\)"
    ):
        as_restorer(nn.Identity(), RestorerSpec(scale=2))(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("arguments", [
    {"scale": 0}, {"value_range": (1, 0)}, {"frames": 0}
])  # fmt: skip
def test_specs_are_checked(arguments):
    with pytest.raises(ValueError, match="RestorerSpec: expected"):
        RestorerSpec(**arguments)
    with pytest.raises(ValueError, match="SizeRequirements: expected multiple_of"):
        SizeRequirements(multiple_of=0)
    with pytest.raises(TypeError, match="RestorerSpec: expected scale to be an integer >= 1, got float 1.5"):
        RestorerSpec(scale=1.5)


def test_a_frame_that_an_undeclared_model_refuses_is_named():
    with pytest.raises(
        ValueError, match=r"expected x of a shape that the model takes.*= \(1, 4, 8, 8\); .* 4 channels"
    ):
        as_restorer(torch.nn.Conv2d(3, 3, 3, padding=1))(torch.rand(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"8, 9, 3\) \(channels come before rows and columns: move the last axis\)"):
        as_restorer(torch.nn.Conv2d(3, 3, 3, padding=1))(torch.rand(1, 8, 9, 3))
    for spec in (None, RestorerSpec()):
        restorer = as_restorer(lambda x: x, spec)
        with pytest.raises(
            ValueError, match=r"expected x of shape \(B, C, H, W\).* got \(3, 8, 9\); x\[None\] has a batch"
        ):
            restorer(torch.rand(3, 8, 9))
        with pytest.raises(
            ValueError, match=r"got \(8, 9, 3\); x.permute\(2, 0, 1\)\[None\] has a batch axis and channels"
        ):
            restorer(torch.rand(8, 9, 3))
        with pytest.raises(ValueError, match=r"C, H and W of at least 1, got \(1, 3, 0, 9\)"):
            restorer(torch.rand(1, 3, 0, 9))
    with pytest.raises(ValueError, match=r"restorer: expected x .*got \(3, 8, 8\)"):
        as_restorer(torch.nn.BatchNorm2d(3))(torch.rand(3, 8, 8))


@pytest.mark.parametrize("spec", [RestorerSpec(), RestorerSpec(size=SizeRequirements(8, 4)), None])
@pytest.mark.parametrize(("shape", "hint"), [((1, 1, 20, 22), ""), ((2, 4, 20, 22), ""), ((1, 20, 22, 3), "move the")])
def test_other_channels_than_the_model_takes_are_refused_in_words(spec, shape, hint):
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)).train()
    restorer = as_restorer(net, spec)
    if spec is None:
        restorer(torch.rand(1, 3, 20, 22))
    before = net[0].running_mean.clone()
    with pytest.raises(ValueError, match=rf"expected x with 3 channels, which the model takes, got {shape[1]}.*{hint}"):
        restorer(torch.rand(shape))
    assert torch.equal(net[0].running_mean, before)


def test_what_a_model_raises_for_other_reasons_stays_as_it_is():
    def model(x, limit=1.0):
        if x.max() > limit or x.shape[1] == 1:
            raise KeyError("too bright")
        return x.clone()

    restorer, x = as_restorer(model, RestorerSpec()), torch.full((1, 3, 8, 8), 0.6)
    with pytest.raises(KeyError, match="too bright"):
        restorer(2 * x)
    with pytest.raises(ValueError, match="expected x with 3 channels"):
        restorer(x[:, :1], limit=0.9)


def test_a_model_of_one_channel_measured_on_gray_frames_restores_color_ones():
    net, gray, color = nn.Conv2d(1, 1, 3, padding=1), torch.rand(1, 1, 20, 22), torch.rand(1, 3, 20, 22)
    restorer = as_restorer(net)
    torch.testing.assert_close(restorer(gray), net(gray))
    torch.testing.assert_close(restorer(color), net(color.movedim(1, 0)).movedim(0, 1))
    mixing = as_restorer(lambda x: x - x.mean(1, keepdim=True))  # takes any number of them
    mixing(gray)
    torch.testing.assert_close(mixing(color), color - color.mean(1, keepdim=True))


def valid(scale=1, kernel=5, layers=2):
    """A network without padding, which eats `kernel // 2` pixels a layer at each side."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 3, kernel) for _ in range(layers)]
    return nn.Sequential(*convolutions, *([nn.Upsample(scale_factor=scale)] if scale > 1 else [])).eval()


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("declared", [False, True])
def test_a_border_that_the_model_eats_is_padded_back(scale, declared):
    net, frame = valid(scale), torch.rand(2, 3, 40, 45)
    restorer = as_restorer(net, RestorerSpec(scale=scale, border=4) if declared else None)
    with torch.no_grad():
        restored, plain = restorer(frame), net(frame)
    assert restored.shape == (2, 3, 40 * scale, 45 * scale)
    assert (restorer.spec.scale, restorer.spec.border) == (scale, 4)
    inner = slice(4 * scale, -4 * scale)
    torch.testing.assert_close(restored[..., inner, inner], plain)


def test_a_border_of_half_pixels_and_a_multiple_are_measured_together():
    class Cut(nn.Module):
        """Doubles the sides, takes multiples of 4 only, and returns 7 output pixels less at each side."""

        def forward(self, x):
            if x.shape[-1] % 4 or x.shape[-2] % 4:
                raise RuntimeError("sizes do not match")
            return x.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., 7:-7, 7:-7]

    restorer, frame = as_restorer(Cut()), torch.rand(1, 3, 21, 33)
    expected = frame.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(restorer(frame), expected)
    assert (restorer.spec.scale, restorer.spec.border, restorer.spec.size.multiple_of) == (2, 4, 4)


@pytest.mark.parametrize(("multiple", "minimum", "square"), [(1, 70, False), (2, 92, False), (4, 80, True)])
def test_a_minimum_above_the_sides_tried_first_does_not_pass_for_a_multiple(multiple, minimum, square):
    restorer = as_restorer(Strict(multiple, minimum=minimum, square=square))
    assert restorer(torch.rand(1, 3, 21, 33)).shape == (1, 3, 21, 33)
    size = restorer.spec.size
    assert (size.minimum, size.multiple_of, size.square) == (96, multiple, square)


def test_a_border_above_the_sides_tried_first_does_not_pass_for_a_multiple():
    restorer = as_restorer(valid(layers=17))
    assert restorer(torch.rand(1, 3, 21, 33)).shape == (1, 3, 21, 33)
    assert (restorer.spec.border, restorer.spec.size.multiple_of) == (34, 1)


def test_frames_smaller_than_the_border_repeat_their_edge():
    assert as_restorer(valid(layers=8), RestorerSpec(border=16))(torch.rand(1, 3, 3, 9)).shape == (1, 3, 3, 9)


@pytest.mark.parametrize(("field", "value"), [("task", "sharpen"), ("border", -1), ("border", 1.5)])
def test_task_and_border_are_checked(field, value):
    with pytest.raises((ValueError, TypeError), match=field):
        RestorerSpec(**{field: value})
    assert RestorerSpec(task="denoise").task == "denoise"
