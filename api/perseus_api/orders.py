"""The orders that a pipeline's ranks were seen to run: what the operator keeps beside the job and the planner reads.

JSON, versioned, checksummed, bounded, gzip-compressed in a ConfigMap. What an order may not do is known to the planner.
"""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from perseus_api.encoding import checksum, decode, encode, validated
from perseus_api.frontier import Chunk, Order
from perseus_api.instructions import Instruction

SCHEMA_VERSION = 1
MAXIMUM_BYTES = 900_000  # of a ConfigMap's content, which may have a mebibyte
Microbatch = Annotated[int, Field(ge=0, le=4095)]


class PipelineOrders(BaseModel):
    """The orders of all stages of a pipeline.

    Attributes:
        order: by stage, the letters of its instructions in order of execution.
        microbatches: by stage, the microbatch of each instruction.
        chunks: by stage, the model chunk of each instruction; empty where all are 0.
        v_shape: odd chunks run through the stages backwards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    order: Annotated[tuple[Order, ...], Field(min_length=1, max_length=256)]
    microbatches: tuple[tuple[Microbatch, ...], ...]
    chunks: tuple[tuple[Chunk, ...], ...] = ()
    v_shape: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> PipelineOrders:
        lengths = [len(order) for order in self.order]
        if [len(each) for each in self.microbatches] != lengths:
            raise ValueError("microbatches must have one entry for each instruction of order")
        if self.chunks and [len(each) for each in self.chunks] != lengths:
            raise ValueError("chunks must be empty or have one entry for each instruction of order")
        known = {each.code for each in Instruction}
        unknown = sorted({letter for order in self.order for letter in order} - known)
        if unknown:
            raise ValueError(f"order has the letter {unknown[0]}, which is no instruction's")
        return self

    @property
    def digest(self) -> str:
        """What identifies the orders: 16 hexadecimal digits."""
        return checksum(self.model_dump(mode="json", by_alias=True)).removeprefix("sha256:")[:16]

    @property
    def text(self) -> str:
        """The orders as the planner loads them (`perseus_planner.given`), without how chunks lie."""
        found = {"order": self.order, "microbatches": self.microbatches, "chunks": self.chunks}
        return json.dumps(found)

    def encode(self) -> bytes:
        """Return the bytes for the ConfigMap's binaryData."""
        return encode(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def decode(cls, data: bytes) -> PipelineOrders:
        """Load and check orders.

        Raises:
            DocumentError: damaged, too large or not valid.
        """
        return validated(cls, decode(data, "orders"), "orders")
