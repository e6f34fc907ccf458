"""The commands. Arguments and what is printed, one file for each group of commands; the work is
done in the rooms below.

May ask: chat, serve, jobs, measure, convert, run, choose, model, hub.
"""
