"""Running many independent tasks on one machine or a cluster, whatever the tasks compute."""
