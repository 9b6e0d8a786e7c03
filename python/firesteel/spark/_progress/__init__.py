"""firesteel.progress.

progress         the function
watch            a block from beginning to end, with what is its own:
listener, totals the port to which tasks tell, and the sums of what they told
tasks_seen       what Spark knows of tasks
bar, report      what is shown, what is left in the end
"""
