from typing import Literal

Decoder = Literal["pyav", "torchcodec"]
"""What decodes video files."""
PYAV: Decoder = "pyav"
