"""`python -m firesteel`: cli reads the flags; demo, doctor and run are a file each, plan is engine/placement.py's."""
