"""Clips without the noise of the camera's sensor, and a gaze model that asks for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.gaze.autogaze.denoising import denoised
from autogaze_mllm.signvid.plan import VideoShape, plan_video
from autogaze_mllm.signvid.render import render_video

NOISE = 0.05


def scene(frames: int, side: int = 112) -> torch.Tensor:
    """(1, frames, 3, side, side): a still slope of light; halfway through a small dark square turns up."""
    slope = torch.linspace(0.3, 0.7, side)
    clip = (0.5 * slope[:, None] + 0.5 * slope).expand(1, frames, 3, side, side).clone()
    clip[:, frames // 2 :, :, 48:64, 80:96] = 0.05
    return (clip * 255).round() / 255


def noisy(clip: torch.Tensor, strength: float = NOISE, seed: int = 1) -> torch.Tensor:
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed))
    return ((clip + strength * noise).clamp(0, 1) * 255).round() / 255


def error(found: torch.Tensor, clean: torch.Tensor) -> list[float]:
    """Root mean square of each frame."""
    return (found - clean)[0].square().mean(dim=(1, 2, 3)).sqrt().tolist()


def test_many_clips_are_denoised_a_few_at_a_time(monkeypatch):
    clips = torch.cat([noisy(scene(4), seed=seed) for seed in range(5)])
    together = denoised(clips)
    monkeypatch.setattr("autogaze_mllm.gaze.autogaze.denoising.TOGETHER", 2)
    assert torch.equal(denoised(clips), together) and not torch.equal(together, clips)


def test_noise_goes_the_more_the_longer_nothing_moves() -> None:
    clean = scene(12)
    before, after = (error(clip, clean) for clip in (noisy(clean), denoised(noisy(clean))))
    assert after[0] < 0.6 * before[0]
    assert after[5] < 0.3 * before[5]
    assert after[-1] < 0.3 * before[-1]


def test_what_turns_up_is_seen_at_once() -> None:
    clean = scene(12)
    found = denoised(noisy(clean))[0, 6]
    assert float(found[:, 50:62, 82:94].mean()) == pytest.approx(0.05, abs=0.03)
    assert float(found[:, 50:62, 66:78].mean()) == pytest.approx(float(clean[0, 6, :, 50:62, 66:78].mean()), abs=0.03)


def test_a_clean_clip_stays_as_it_is() -> None:
    clean = scene(4)
    assert torch.equal(denoised(clean), clean)


def test_noise_that_is_hardly_seen_is_left() -> None:
    faint = noisy(scene(4), 0.008)
    assert torch.equal(denoised(faint), faint)


def test_texture_that_stands_still_is_not_noise() -> None:
    texture = torch.rand(1, 1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    assert torch.equal(denoised(texture), texture)
    assert torch.equal(denoised(texture.repeat(1, 3, 1, 1, 1)), texture.repeat(1, 3, 1, 1, 1))


def test_a_clip_is_denoised_as_it_is_alone() -> None:
    clean = scene(4)
    both = torch.cat([noisy(clean), clean, noisy(clean, 0.1, seed=2)])
    alone = torch.cat([denoised(part[None]) for part in both])
    assert torch.allclose(denoised(both), alone, atol=1e-6)
    assert torch.equal(denoised(both)[1], clean[0])


def test_a_gaze_model_that_asks_for_it_selects_on_the_denoised_clip() -> None:
    plain, asking = am.AutoGaze.from_pretrained(), am.AutoGaze.from_pretrained()
    plain.processor.do_denoise = False
    clip = noisy(scene(3, side=224))
    found = asking.select(clip, plain.grid, 0.05, None)
    expected = plain.select(denoised(clip), plain.grid, 0.05, None)
    assert torch.equal(found.gazing_pos, expected.gazing_pos)
    assert not torch.equal(found.gazing_pos, plain.select(clip, plain.grid, 0.05, None).gazing_pos)
    assert asking.identity() != plain.identity()  # caches hold both


def test_the_processor_says_so_and_does_it(tmp_path: Path) -> None:
    published = am.AutoGazeImageProcessor()
    assert not published.do_denoise
    dataclasses.replace(published, do_denoise=True, do_resize=False).save_pretrained(tmp_path)
    stored = am.AutoGazeImageProcessor.from_pretrained(tmp_path)
    clip = noisy(scene(4))
    frames = [(frame.permute(1, 2, 0) * 255).round().byte().numpy() for frame in clip[0]]
    assert torch.allclose(stored(frames), published.normalize(denoised(clip)[0]), atol=1e-4)
    off = am.AutoGazeImageProcessor.from_pretrained(tmp_path, do_denoise=False)
    assert torch.allclose(off(frames), published.normalize(clip[0].clone()), atol=1e-4)


def test_the_bundled_model_spends_its_patches_on_signs_and_not_on_noise() -> None:
    """Small signs in a scene full of texture: how many of the finest patches in the corners of a sign are kept?"""
    gaze = am.AutoGaze.from_pretrained()
    assert gaze.processor.do_denoise
    plan = plan_video(VideoShape(224, 224, 8, signs=3, noise=NOISE), "train", 0, 0)
    clip = torch.from_numpy(np.stack(list(render_video(plan)))).permute(0, 3, 1, 2).float() / 255
    size = plan.shape.size - 1  # pixels

    def hits() -> int:
        info = gaze.select(clip.unflatten(0, (-1, 2)), gaze.grid, 0.15, None)
        assert info.gazing_mask is not None
        kept = set(map(tuple, info.gazing_mask[-1].flatten(0, 1).nonzero().tolist()))
        corners = [(sign, sign.x + dx, sign.y + dy) for sign in plan.signs for dx in (0, size) for dy in (0, size)]
        cells = {(t, y // 16 * 14 + x // 16) for sign, x, y in corners for t in range(sign.start, sign.end)}
        return len(cells & kept)

    guided = hits()
    gaze.config = dataclasses.replace(gaze.config, reward_guidance=0.0)
    alone = hits()
    gaze.processor.do_denoise = False
    assert alone > 5 * max(hits(), 1)
    gaze.config = dataclasses.replace(gaze.config, reward_guidance=8.0)
    assert min(guided, hits()) > 4  # what patches bring tells signs from noise, too
