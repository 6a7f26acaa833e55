"""The test base of degradations: a subclass names instances, and inherits what every degradation keeps."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any

import pytest
import torch
from _samples import default_float64, default_meta
from torch import Tensor

from tta_restore.degradations import Degradation, create_degradation


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensors_of(parameters: Any) -> list[Tensor]:
    """All tensors of a batch of parameters, those of a composition in order."""
    if hasattr(parameters, "parts"):
        return [tensor for part in parameters.parts for tensor in tensors_of(part)]
    values = [getattr(parameters, field.name) for field in fields(parameters)]
    return [value for value in values if value is not None]


class DegradationTests(ABC):
    """What every degradation keeps: seeds, shapes, dtypes, batches, distances, JSON, messages."""

    random = False  # whether `apply` draws from the generator
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

    @abstractmethod
    def degradations(self) -> list[Degradation]:
        """Instances with different settings."""

    @abstractmethod
    def bad(self) -> list[tuple[dict[str, Any], type[Exception], str]]:
        """Settings that are refused: keywords, error, part of its message."""

    def images(self, count: int = 3) -> Tensor:
        coarse = torch.rand(count, 3, 6, 8, generator=seeded(5))
        return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)

    def test_seeds_decide_and_global_state_stays(self):
        state = torch.get_rng_state()
        for degradation in self.degradations():
            drawn = [degradation.sample(seeded(seed), 3) for seed in (1, 1)]
            for first, second in zip(*map(tensors_of, drawn), strict=True):
                assert torch.equal(first, second)
            outs = [degradation.apply(self.images(), drawn[0], seeded(seed)) for seed in (2, 2, 3)]
            assert torch.equal(outs[0], outs[1])
            if self.random:
                assert not torch.equal(outs[0], outs[2])
        assert torch.equal(torch.get_rng_state(), state)

    def test_ambient_defaults(self):
        images = self.images(2)

        def run(degradation: Degradation) -> list[Tensor]:
            drawn, other = (degradation.sample(seeded(seed), 2) for seed in (1, 3))
            parameters = [*tensors_of(drawn), degradation.distance(drawn, other)]
            return [*parameters, degradation.apply(images, drawn, seeded(2))]

        for degradation in self.degradations():
            expected = run(degradation)
            for around in (default_float64, default_meta):
                with around():
                    found = run(degradation)
                for got, want in zip(found, expected, strict=True):
                    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)

    def test_a_batch_is_a_loop(self):
        images = self.images()
        for degradation in self.degradations():
            parameters = degradation.sample(seeded(), len(images))
            generators = seeded(1), seeded(1)
            whole = degradation.apply(images, parameters, generators[0])
            single = [degradation.apply(images[i : i + 1], parameters[i], generators[1]) for i in range(len(images))]
            if not self.random:  # noise of other shapes is other noise
                torch.testing.assert_close(whole, torch.cat(single), atol=2e-5, rtol=1e-4)
            assert whole.shape == torch.cat(single).shape

    def test_dtypes_device_and_input_stay(self, device):
        for degradation in self.degradations():
            parameters = degradation.sample(seeded(), 3)
            for dtype in self.dtypes:
                images = self.images().to(device, dtype)
                kept = images.clone()
                out = degradation.apply(images, parameters, seeded())
                assert out.dtype == dtype
                assert out.device.type == device.type
                assert out.isfinite().all()
                assert torch.equal(images, kept)

    def test_one_set_of_parameters_serves_a_batch(self):
        for degradation in self.degradations():
            parameters = degradation.sample(seeded(), 1)
            images = self.images(2)
            out = degradation.apply(images, parameters, seeded())
            twice = degradation.apply(images, parameters[[0, 0]], seeded())
            assert torch.equal(out, twice)

    def test_empty_batches(self):
        for degradation in self.degradations():
            parameters = degradation.sample(seeded(), 0)
            assert len(parameters) == 0
            assert len(degradation.apply(self.images()[:0], parameters, seeded())) == 0

    def test_json_round_trip(self):
        for degradation in self.degradations():
            again = create_degradation(json.dumps(degradation.to_dict()))
            assert type(again) is type(degradation)
            parameters = degradation.sample(seeded(), 2)
            text = json.loads(json.dumps(parameters.to_dict()))
            read = again.parameters_from_dict(text)
            for first, second in zip(tensors_of(parameters), tensors_of(read), strict=True):
                assert first.dtype == second.dtype
                assert torch.equal(first, second)
            images = self.images(2)
            assert torch.equal(degradation.apply(images, parameters, seeded()), again.apply(images, read, seeded()))
            same = again.sample(seeded(), 2)
            for first, second in zip(tensors_of(parameters), tensors_of(same), strict=True):
                assert torch.equal(first, second)

    def test_distance(self):
        for degradation in self.degradations():
            first, second = degradation.sample(seeded(1), 4), degradation.sample(seeded(2), 4)
            apart = degradation.distance(first, second)
            assert apart.shape == (4,)
            assert (apart >= 0).all()
            torch.testing.assert_close(apart, degradation.distance(second, first))
            assert degradation.distance(first, first).abs().max() < 1e-5

    def test_parameters_are_batches(self):
        for degradation in self.degradations():
            parameters = degradation.sample(seeded(), 4)
            assert len(parameters) == 4
            halves = type(parameters).cat([parameters[:2], parameters[2:]])
            for first, second in zip(tensors_of(parameters), tensors_of(halves), strict=True):
                assert torch.equal(first, second)

    def test_wrong_settings(self):
        cls = type(self.degradations()[0])
        for settings, error, message in self.bad():
            with pytest.raises(error, match=message):
                cls(**settings)

    def test_wrong_arguments(self):
        degradation = self.degradations()[0]
        parameters, name = degradation.sample(seeded(), 2), type(degradation).__name__
        with pytest.raises(ValueError, match=rf"{name}: expected sharp of shape \(B, C, H, W\)"):
            degradation.apply(self.images()[0], parameters, seeded())
        with pytest.raises(TypeError, match="floating dtype"):
            degradation.apply((self.images() * 255).byte(), parameters, seeded())
        with pytest.raises(ValueError, match="expected 1 or B = 3 sets of parameters"):
            degradation.apply(self.images(3), parameters, seeded())
        with pytest.raises(TypeError, match="expected parameters to be"):
            degradation.apply(self.images(3), {"std": 1}, seeded())
