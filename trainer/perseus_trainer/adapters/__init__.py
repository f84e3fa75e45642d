"""One line for each training framework; the only room of this library that may import one.

- `perseus_trainer.adapters.torch_pipelining.attach(schedule)`
- `perseus_trainer.adapters.megatron.attach()`
- `perseus_trainer.adapters.deepspeed.attach(engine)`
- `perseus_trainer.adapters.cuda`: where boundaries are on CUDA.

Nothing is imported here: a script pays for the framework that it uses. An adapter wraps what a schedule calls, and
leaves tensors, streams and the order alone: the loss is the same to the last bit. What it needs of a framework and does
not find is an `AdapterProblem` at `attach`, never later.
"""


class AdapterProblem(RuntimeError):
    """A framework, or an object of one, that an adapter cannot be attached to; the text says why."""
