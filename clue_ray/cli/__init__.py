"""The command line: parse, call one function, print one summary. Exit 0 good, 2 the user's mistake, 1 anything else.

Heavy modules are imported inside the commands, so that help and mistakes come at once.
"""

from clue_ray.cli.clusters import submit
from clue_ray.cli.corpora import fetch, prepare
from clue_ray.cli.encoders import embed, transfer
from clue_ray.cli.laws import browse, fit, predict, report
from clue_ray.cli.main import app
from clue_ray.cli.studies import plan, results, run, train

for command in (fetch, prepare, plan, run, train, results, fit, report, browse, predict, embed, transfer, submit):
    app.command()(command)
