"""The host kit: the files, the user and the directories that make a host clojars.org's."""
