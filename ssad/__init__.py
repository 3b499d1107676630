# SPDX-License-Identifier: BSD-3-Clause
"""The daemon that does TLS for the sockets of the kernel module ssa, and its command line."""

__version__ = "0.1.0"
