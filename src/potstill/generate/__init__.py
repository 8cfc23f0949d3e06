"""Engines that write text."""
