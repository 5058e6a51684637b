"""What is asked of the server, and by what a request is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from navsim_recogdrive.pretraining.labelling.images import ImageScaling

Step = Literal["generation", "refinement", "judging"]

STEPS: tuple[Step, ...] = ("generation", "refinement", "judging")
"""The three requests that an answer takes, in order."""


@dataclass(frozen=True)
class Request:
    """One request about one scene.

    Attributes:
        step: which of the three it is.
        scene: the scene's token.
        family: the question's family.
        model: who is asked.
        system: the system turn.
        user: the text of the user turn.
        image: path of the image below the data root; ``None`` if the step shows none.
        scaling: how the image is sent.
        max_tokens: of the answer.
        temperature: of the sampling.
        extra: further fields of the request.
    """

    step: Step
    scene: str
    family: str
    model: str
    system: str
    user: str
    image: str | None
    scaling: ImageScaling
    max_tokens: int
    temperature: float
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> bytes:
        """16 bytes that differ for any two requests that differ in anything but the server's address."""
        content = [
            [self.step, self.scene, self.family, self.model, self.system, self.user, self.image],
            [self.scaling.longest_side, self.scaling.quality] if self.image is not None else [],
            [self.max_tokens, self.temperature, dict(self.extra)],
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()[:16]

    def messages(self, image_url: str | None) -> list[dict[str, Any]]:
        """The turns as the API has them; the image stands first, so that servers can share it among questions."""
        content: list[dict[str, Any]] = []
        if image_url is not None:
            content.append({"type": "image_url", "image_url": {"url": image_url}})
        content.append({"type": "text", "text": self.user})
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]
