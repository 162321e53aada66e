"""What streams of pictures share: `decode`, and what they found.

A record is decoded when it is drawn; what is broken is left out, named in `findings`, and its turn passes to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suffuse.data.decode import Findings, picture
from suffuse.data.pictures import Record

__all__ = ["PictureStream", "Text"]

Text = Callable[[str], Tensor]
"""Turns a caption into a condition of one shape, as in `lambda caption: words.ids([caption], length=24)[0]`."""


class PictureStream:
    """A stream of pictures of one size: "x" (C, S, S) in [-1, 1], and "label" and "text" where they are asked for.

    Args:
        size, channels, crop, smallest: as for `picture`.
        labels: records have a class; one without is left out.
        text: makes the condition "text" of a caption; a record without a caption, or with one of which `text` raises
            a ValueError, is left out.

    Attributes:
        findings: what was found in the records drawn so far.
    """

    def __init__(
        self,
        size: int,
        *,
        channels: int = 3,
        crop: str = "centre",
        smallest: int | None = None,
        labels: bool = False,
        text: Text | None = None,
    ) -> None:
        self.size, self.labels, self.text = size, labels, text
        self.options: dict[str, Any] = {"channels": channels, "crop": crop, "smallest": smallest}
        self.findings = Findings()

    def decode(self, record: Record) -> dict[str, Tensor] | None:
        """The tensors of one record, or None for a broken one."""
        item: dict[str, Tensor] = {}
        if self.labels:
            if record.label is None:
                return self._left_out(record, "without a class")
            item["label"] = torch.tensor(record.label)
        if self.text is not None:
            try:
                if not record.caption:
                    return self._left_out(record, "without a caption")
                item["text"] = self.text(record.caption)
            except ValueError:
                return self._left_out(record, "with a caption that cannot be used")
        try:
            raw = record.read()
        except OSError:
            return self._left_out(record, "unreadable")
        pixels, reasons = picture(raw, self.size, **self.options)
        self.findings.note(record.name, pixels is not None, reasons)
        return None if pixels is None else {"x": torch.from_numpy(pixels).float() / 127.5 - 1} | item

    def _left_out(self, record: Record, reason: str) -> None:
        self.findings.note(record.name, False, (reason,))
