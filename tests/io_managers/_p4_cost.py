import time
import sqlalchemy as sa
from tests.io_managers.test_badness import *
from tests.io_managers.many_rows import CHAIN, insert_exposures, insert_products, analyze

def test_cost(survey):
    old, new, ids = survey
    n=10000
    with old.database.session() as s:
        s.execute(sa.text("alter table differences drop constraint fk_differences_reference_id"))
        insert_exposures(s, old.recipes, n)
        insert_products(s, old.recipes, n, 1)
        s.execute(sa.update(PRODUCT_ROWS["diff"]).values(reference_id=ids["reference/f.r"]))
        analyze(s)
    times=[]
    for _ in range(30):
        t=time.perf_counter()
        with old.database.session() as s:
            badness.inherit(s,"diff",ids["diff/science"],old.recipes.upstreams("diff"))
        times.append(time.perf_counter()-t)
    t=time.perf_counter()
    c=flag(old, ids, "reference/f.r", "bad reference")
    t1=time.perf_counter()-t
    t=time.perf_counter()
    c2=flag(old, ids, "reference/f.r", clear=("bad reference",))
    print("\nCOST inherit ms", sorted(times)[15]*1e3, "flag 10000 diffs s", t1, c, "clear", time.perf_counter()-t, c2)
    from seechange_assets.product_lists import list_products
    with old.database.session() as s:
        s.execute(sa.text("update images set instrument='demo'"))
        t=time.perf_counter(); r=list_products(s, old.recipes, "demo", "diff", mjd=(61345.,61400.)); print("list", len(r), time.perf_counter()-t)
