# SPDX-License-Identifier: BSD-3-Clause
"""Tests of the runner that boot a guest; they run on the host."""
