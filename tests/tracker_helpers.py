"""What TensorBoard and W&B have written, read back."""

import json
import struct
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def events(folder: Path) -> EventAccumulator:
    """All events of one TensorBoard run."""
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    found.Reload()
    return found


def texts(found: EventAccumulator) -> dict[str, dict[int, str]]:
    """tag -> step -> text, without what fairseq and TensorBoard add to the tag's name."""
    tags = [tag for tag in found.Tags()["tensors"] if tag.endswith("/text_summary")]
    return {
        tag.removesuffix("/text_summary"): {
            event.step: event.tensor_proto.string_val[0].decode() for event in found.Tensors(tag)
        }
        for tag in tags
    }


def history(log: Path) -> list[dict]:
    """What an offline run of W&B logged, one dict a step: protocol buffers in LevelDB's log format, behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, message, rows = log.read_bytes(), 7, b"", []
    while position < len(data):
        left_of_block = 2**15 - position % 2**15
        if left_of_block < 7:
            position += left_of_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (2, 3):  # the first or a middle part
            continue
        record = wandb_internal_pb2.Record.FromString(message)
        message = b""
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows
