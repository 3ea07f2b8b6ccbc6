"""Draws the picture of docs/pipeline.md: `python docs/pipeline_picture.py`."""

from pathlib import Path

import funprop as fp

if __name__ == "__main__":
    plans = fp.gpipe(4, 8), fp.one_f_one_b(4, 8), fp.zero_bubble(4, 8)
    (Path(__file__).parent / "images" / "pipeline.svg").write_text(fp.schedule_picture(*plans))
