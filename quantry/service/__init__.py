"""The whole service on this machine: the embedded servers, the API and a worker as child processes.

It needs the packages of the extras. In this folder only ``processes`` imports one (psutil); the children import the
others.
"""
