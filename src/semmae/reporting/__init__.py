"""What a run came to, for people: made of its files alone, so that everything here can be made again.

run_page, parts_page       the two HTML pages, of what page, charts, part_samples and the templates give them
results                    the files of a measurement: results.json, results.md, per_class.csv, confusion.png
verdicts, next_steps       a sentence on what was measured or went wrong; commands to paste
ending                     the last lines of a verb, of all these
pictures, mask_pictures, confusion   PNG sheets
model_card                 README.md of an export
"""
