"""Many texts, and whole books, to audio files: resumable, on one machine or a Ray cluster.

rows (`sources`) --> parts (`parts`) --> Ray Data's actors (`pipeline`, `worker`, `speakers`) --> files, records
                                                                                                    |
                                       manifest.parquet, joined files  <--  `collector`  <----------+
"""
