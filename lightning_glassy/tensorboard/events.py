"""The place of the parts of a record in an event file. The sink writes them there, and the tab reads them.

Each part has its own tag, and lies in the *metadata* of a summary with an empty tensor, as in TensorBoard's HParams.
TensorBoard keeps the metadata of every tag. No part is sampled away, at any ``--samples_per_plugin``. No part is lost
if steps go back after a resumption. No tensor of a crafted file is ever unpacked.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

PLUGIN_NAME = "glassy"

# <monitor>_record/<token of the record, the time at which it was begun>/<number of the part>
_TAG = re.compile(r"(?P<monitor>.+)_record/(?P<token>[0-9a-f]{16})/(?P<number>[0-9]{1,9})", flags=re.DOTALL)


class Place(NamedTuple):
    """The content of a tag: the monitor, the token of the record, and the number of the part."""

    monitor: str
    token: str
    number: int


def tag_of(place: Place) -> str:
    """Return the tag of a part."""
    return f"{place.monitor}_record/{place.token}/{place.number}"


def place_of(tag: str) -> Place | None:
    """Return the place that a tag describes, None if it is not the tag of a part."""
    found = _TAG.fullmatch(tag)
    return None if found is None else Place(found["monitor"], found["token"], int(found["number"]))


def by_record(contents: Iterable[tuple[str, bytes]]) -> dict[tuple[str, str], dict[int, bytes]]:
    """Return the parts by number, for each record by monitor and token.

    Args:
        contents: the tag and the content of each part.
    """
    found: dict[tuple[str, str], dict[int, bytes]] = {}
    for tag, content in contents:
        place = place_of(tag) or Place(tag, "", 0)
        found.setdefault((place.monitor, place.token), {})[place.number] = content
    return found


def curves(points: Iterable[tuple[str, float]]) -> Any:
    """Return the summary that carries one scalar for each tag.

    Raises:
        ImportError: the package tensorboard is missing.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in points])


def image(tag: str, png: bytes) -> Any:
    """Return the summary that carries the content of a PNG file.

    Raises:
        ImportError: the package tensorboard is missing.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = struct.unpack(">II", png[16:24])  # in the first chunk of the file (PNG specification, 11.2.2)
    content = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=content)])


def summary(tag: str, content: bytes) -> Any:
    """Return the summary that carries a part.

    Raises:
        ImportError: the package tensorboard is missing.
    """
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_FLOAT

    # The data server of TensorBoard drops summaries without a data class.
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content), data_class=DATA_CLASS_TENSOR
    )
    nothing = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=nothing)])
