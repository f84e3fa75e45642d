"""The contracts between the parts of Perseus Operator.

Everything that two programs must agree on lives here and nowhere else: the PerseusJob's spec and status, the
documents that travel between programs (profile, frontier, plan), the messages on the agent's socket, and every
name (labels, conditions, metrics, environment variables, paths).

What may not live here: decisions, input or output, and anything that needs a cluster, a GPU or a clock.
`names`, `instructions` and `messages` use the standard library alone, because the trainer library imports them inside
other people's training images.
"""
