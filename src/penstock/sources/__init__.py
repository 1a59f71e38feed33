"""Model sources: from the URI a user writes to a folder with the model's files, the same on a laptop and in a pod.

uri        what can be written, parsed: `parse_source`. No I/O, so the operator uses it too.
find       the folder for a URI on this machine: `find_folder`. `--model` of every command passes through it.
hub        fetches from the Hugging Face hub into its cache, with progress and clear sentences
progress   what a log shows while gigabytes arrive
command    `penstock fetch`: the init container of a pod
"""
