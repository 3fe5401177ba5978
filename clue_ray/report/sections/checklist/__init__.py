"""Answers to the checklist of the section "How this was measured"."""
