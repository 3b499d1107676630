# SPDX-License-Identifier: BSD-3-Clause
"""Fuzzers: random messages and calls. The same seed gives the same ones."""
