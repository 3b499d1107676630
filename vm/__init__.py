# SPDX-License-Identifier: BSD-3-Clause
"""Runs commands in a virtual machine with a Debian kernel and the module in it.

The guest's root is the host's own, read-only with a layer in memory over it: whatever is installed
on the host, the virtual environment included, is there in the guest, and nothing that the guest
writes stays, apart from its results folder.
"""
