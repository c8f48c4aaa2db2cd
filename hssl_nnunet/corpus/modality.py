"""The imaging modality behind nnU-Net's channel names."""

from __future__ import annotations

import re

UNKNOWN = "unknown"
# whole words of a channel name, lower case
WORDS = {
    "CT": r"ct|cta|cbct|cect|ncct|ldct",
    "MR": r"mri?|mrt|mra|fmri|cmr|t[12]\w*|flair|adc|dwi|swi|pd|pdw|stir|tirm|dce|bold|cine|gre|mprage|space",
    "PET": r"pet|suv|fdg|psma",
    "US": r"us|ultrasound|sonography|echo",
    "XR": r"xr|xray|ray|radiograph|dx|cr|mammogram|mammography",
}


def modality_of(channel_name: str) -> str:
    """Modality of a channel, by the first word of its name that tells one: `T2w FLAIR` is MR, `CT (PET-CT)` is CT.

    Returns:
        `CT`, `MR`, `PET`, `US`, `XR`; the name as given when no word is known; `unknown` for an empty name.
    """
    for word in re.findall(r"[a-z0-9]+", channel_name.lower()):
        for modality, pattern in WORDS.items():
            if re.fullmatch(pattern, word):
                return modality
    return channel_name.strip() or UNKNOWN
