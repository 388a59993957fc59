# What is wrong with the files of a server and of an agent after both ended, one line for each thing.
#
# usage: kills_check.py HISTORY SPOOL
import glob
import sqlite3
import sys

history, spool = sys.argv[1:]
days = glob.glob(f"{history}/day-*.db")
for path in [f"{history}/main.db", *days, spool]:
    with sqlite3.connect(path) as file:
        for (word,) in file.execute("PRAGMA integrity_check"):
            if word != "ok":
                print(path, word)

cursors = []
for path in days:
    with sqlite3.connect(path) as file:
        twice = file.execute(
            "SELECT host_id, netns, cookie, opened_at_us, count(*) FROM ("
            "    SELECT host_id, netns, cookie, closed_at_us - duration_us AS opened_at_us FROM sessions"
            "    UNION ALL SELECT host_id, netns, cookie, opened_at_us FROM open_sessions)"
            " GROUP BY 1, 2, 3, 4 HAVING count(*) > 1"
        )
        for row in twice:
            print(path, "more than once: host, netns, cookie, opened_at_us, times:", row)
        cursors += file.execute("SELECT epoch, seq FROM cursors")

with sqlite3.connect(spool) as file:
    acknowledged = file.execute("SELECT epoch, seq FROM marks ORDER BY epoch DESC, seq DESC LIMIT 1").fetchall()
    waiting = file.execute("SELECT epoch, seq FROM batches ORDER BY epoch, seq LIMIT 1").fetchall()
if not cursors or not acknowledged:
    print("nothing was stored or acknowledged:", cursors, acknowledged)
elif acknowledged[0] > max(cursors):
    print("acknowledged and not stored:", acknowledged, "the server has", cursors)
for batch in waiting:
    if batch <= max(acknowledged):
        print("acknowledged and kept:", batch, "of", acknowledged)
