"""Mutation testing: are faults noticed that somebody makes in one line?

``python -m tests.mutation`` changes one place of a module, runs the tests that should
notice, and says whether one of them failed. See docs/mutation-testing.md.
"""
