"""The same of families whose towers take pictures of any size, cut into patches before they are handed over."""

from __future__ import annotations

import torch
from PIL import Image

from .layouts import Layout, Piece, VideoClip


class Qwen(Layout):
    """Two frames are one tubelet; an odd last frame is repeated. Rows of the tower are groups of merge x merge."""

    def grouped(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels (T, 3, H, W) -> rows (n, 3 * 2 * p * p) as the tower takes them, and the grid (1, 3) in patches."""
        vision = self.config.vision_config
        pair, patch, merge = vision.temporal_patch_size, vision.patch_size, vision.spatial_merge_size
        while len(pixels) % pair:
            pixels = torch.cat([pixels, pixels[-1:]])
        tubelets, rows, columns = len(pixels) // pair, pixels.shape[-2] // patch, pixels.shape[-1] // patch
        cut = pixels.reshape(tubelets, pair, 3, rows // merge, merge, patch, columns // merge, merge, patch)
        flat = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(tubelets * rows * columns, -1)
        return flat, torch.tensor([[tubelets, rows, columns]])

    def count(self, grid: torch.Tensor) -> int:
        return int(grid.prod()) // self.config.vision_config.spatial_merge_size**2

    def video(self, clip: VideoClip) -> Piece:
        rows, grid = self.grouped(clip.pixels)
        tensors = {"pixel_values_videos": rows, "video_grid_thw": grid}
        if self.takes("second_per_grid_ts"):
            seconds = self.config.vision_config.temporal_patch_size * clip.seconds_per_frame
            tensors["second_per_grid_ts"] = torch.tensor([seconds])
        return self.video_text(clip, grid), tensors

    def video_text(self, clip: VideoClip, grid: torch.Tensor) -> str:
        return f"<|vision_start|>{'<|video_pad|>' * self.count(grid)}<|vision_end|>"

    def image(self, image: Image.Image, alone: bool) -> Piece:
        made = self.processed(image)
        count = self.count(made["image_grid_thw"])
        tensors = {name: made[name] for name in ("pixel_values", "image_grid_thw")}
        return f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>", tensors

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        kinds = torch.zeros_like(ids)
        kinds[ids == self.config.image_token_id] = 1
        kinds[ids == self.config.video_token_id] = 2
        return {"mm_token_type_ids": kinds}


class Qwen3(Qwen):
    def video_text(self, clip: VideoClip, grid: torch.Tensor) -> str:
        """A tubelet's time is the mean of its frames'."""
        tubelets = int(grid[0, 0])
        times = clip.times + clip.times[-1:] * (2 * tubelets - len(clip.times))
        run = "<|vision_start|>" + "<|video_pad|>" * (self.count(grid) // tubelets) + "<|vision_end|>"
        return "".join(f"<{(times[2 * k] + times[2 * k + 1]) / 2:.1f} seconds>{run}" for k in range(tubelets))


class VideoLlama3(Layout):
    """Frames of a video merge 2 x 2 patches into a token, images none. Nothing is left out between alike frames."""

    MERGE = 2

    def video(self, clip: VideoClip) -> Piece:
        patch, merge = self.config.vision_config.patch_size, self.MERGE
        frames, _, height, width = clip.pixels.shape
        rows, columns = height // patch, width // patch
        cut = clip.pixels.reshape(frames, 3, rows // merge, merge, patch, columns // merge, merge, patch)
        run = "<|video_pad|>" * (rows * columns // merge**2)
        return ",".join(f"Time {time:.1f}s:{run}" for time in clip.times), {
            "pixel_values_videos": cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(frames * rows * columns, -1),
            "video_grid_thw": torch.tensor([[frames, rows, columns]]),
            "video_merge_sizes": torch.tensor([merge]),
        }

    def image(self, image: Image.Image, alone: bool) -> Piece:
        made = self.processed(image)
        count = int(made["image_grid_thw"].prod())
        names = ("pixel_values", "image_grid_thw", "image_merge_sizes")
        return "<|image_pad|>" * count, {name: made[name] for name in names}


class Gemma4(Layout):
    """Patches lie in raster order, channels last, with their columns and rows beside them; pixels are 0 to 1."""

    def video(self, clip: VideoClip) -> Piece:
        vision = self.config.vision_config
        patch = vision.patch_size
        frames, _, height, width = clip.pixels.shape
        rows, columns = height // patch, width // patch
        cut = clip.pixels.reshape(frames, 3, rows, patch, columns, patch)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        run = "<|video|>" * (rows * columns // vision.pooling_kernel_size**2)
        text = " ".join(f"{int(time // 60):02d}:{int(time % 60):02d} <|image>{run}<image|>" for time in clip.times)
        tensors = {
            "pixel_values_videos": cut.permute(0, 2, 4, 3, 5, 1).reshape(frames, rows * columns, -1),
            "video_position_ids": torch.stack([x, y], dim=-1).reshape(1, -1, 2).expand(frames, -1, -1),
        }
        if self.takes("num_frames_per_video"):
            return text, tensors | {"num_frames_per_video": torch.tensor([frames])}
        return text, {name: tensor[None] for name, tensor in tensors.items()}  # 5.17: videos of one length

    def image(self, image: Image.Image, alone: bool) -> Piece:
        made = self.processed(image)
        count = int(made["num_soft_tokens_per_image"][0])
        tensors = {name: made[name] for name in ("pixel_values", "image_position_ids")}
        return f"<|image>{'<|image|>' * count}<image|>", tensors

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        kinds = torch.zeros_like(ids)
        kinds[ids == self.config.image_token_id] = 1
        kinds[ids == self.config.video_token_id] = 2
        return {"mm_token_type_ids": kinds}
