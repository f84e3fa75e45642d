"""Measuring a job's profile while it trains: which clocks, in which iterations, and what becomes of the answers.

All of it is decided from the agents' reports alone, so that an operator that starts anew goes on where it was; only the
module `agents` reaches out.
"""
