import json, time, sys, cProfile, pstats
from pathlib import Path
T=int(sys.argv[1]); method=sys.argv[2]
f=Path(f"/tmp/scale_d/t{T}.jsonl")
if not f.exists():
    with open(f,"w") as o:
        for t in range(T):
            for i in range(2):
                o.write(json.dumps({"task":f"task{t}","input":f"what is {t} plus {i}?","targets":str(t+i)})+"\n")
import torch
torch.set_num_threads(1)
from mhr.runs import load_config
from mhr.training import pretrain
cfg=load_config(model="builtin:t5-tiny",tasks=str(f),method=method,steps=30,batch_size=8,**({"lazy_rows":True} if len(sys.argv)>3 else {}),log_every=5,save_every=15,max_input_length=32,max_target_length=8)
pr=cProfile.Profile(); t=time.process_time(); pr.enable()
pretrain(cfg,f"/tmp/scale_d/run{T}{method}",overwrite=True,progress=False)
pr.disable(); print("cpu",time.process_time()-t)
pstats.Stats(pr).sort_stats("cumtime").print_stats(70)
