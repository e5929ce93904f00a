import json, time, resource, pytest
from pathlib import Path
CELLS=Path(__file__).parent/"matrix_cells.py"
@pytest.mark.slow
def test_try(make_recipe, launcher, tmp_path):
    for w in (1,2):
        t=time.time(); c0=resource.getrusage(resource.RUSAGE_CHILDREN)
        l=launcher(make_recipe(str(tmp_path/str(w)),train={"steps":2,"batch_size":4,"log_every":1}),world=w,before=f"{CELLS}:instead")
        print(w,l.codes,time.time()-t)
        if any(l.codes): print("\n".join(l.said)[-6000:])
        for f in sorted((tmp_path/str(w)).iterdir()):
            if (f/"metrics.jsonl").exists(): print(f.name,[json.loads(r)["loss"] for r in (f/"metrics.jsonl").read_text().splitlines()])
