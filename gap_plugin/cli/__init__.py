"""The commands: one module each, and what they share.

:mod:`.flags` (what a command line may say), :mod:`.command` (how one starts
and ends), :mod:`.building` (from flags to runner, model and stores),
:mod:`.console` (what a person reads).
"""
