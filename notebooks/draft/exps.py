"""Writes the campaign's experiments: python exps.py, with the recipe of the search."""
from pathlib import Path
R={"network":"DiT-tiny/2","batch_size":64,"learning_rate":3e-3,"ema_decay":0.998,"images":390000}
F={ "faces-lfm":("Ordinary flow matching in the latents of faces (Table 1's LFM).",{"decomposition":"identity","bands":1,"schedule":"linear"}),
"faces-db6":("K-Flow, db6, two bands (Tables 1 and 5).",{}),
"faces-db6-uniform-w":("The best steerable variant of the digits: k drawn so that the mean band weight is uniform.",{"draw_k":"w"}),
"faces-db6-displacement":("Our output, db6.",{"output":"displacement"}),
"faces-fourier":("K-Flow, Fourier, two bands (Table 1).",{"decomposition":"fourier"}),
"faces-pca":("K-Flow along principal components of the training latents (Table 1).",{"decomposition":"pca"}),
"faces-haar":("K-Flow, Haar, two bands (Table 5).",{"wavelet":"haar"}),
"faces-meyer":("K-Flow, Meyer's wavelet, two bands (Table 5).",{"decomposition":"meyer"}),
"faces-db6-three-bands":("K-Flow, db6, three bands (Table 5).",{"bands":3}),
"faces-db6-reversed":("K-Flow, db6, bands visited from high scaling to low.",{"order":"high-to-low"}),
"faces-one-band-hard":("A control: one band with the hard bump.",{"decomposition":"identity","bands":1}),
}
C={"cifar10-lfm":("Ordinary flow matching in the latents of CIFAR-10 (Table 2's LFM).",{"decomposition":"identity","bands":1,"schedule":"linear"}),
"cifar10-fourier":("K-Flow, Fourier, two bands (Table 2).",{"decomposition":"fourier"}),
"cifar10-db6-uniform-w":("The best steerable variant of the digits.",{"draw_k":"w"}),
"cifar10-db6":("K-Flow, db6, two bands (Table 2).",{}),
"cifar10-db6-reversed":("K-Flow, db6, bands visited from high scaling to low (Table 6).",{"order":"high-to-low"}),
"cifar10-db6-displacement":("Our output, db6.",{"output":"displacement"}),
"cifar10-db6-unconditional":("Table 9's question: two bands.",{"conditional":False}),
"cifar10-db6-three-bands-unconditional":("Table 9's question: three bands.",{"bands":3,"conditional":False}),
}
for group,data,base in ((F,"faces-latents",{"conditional":False}),(C,"cifar10-latents",{})):
    for name,(why,keys) in group.items():
        lines=[f"# {why}",f"name: {name}",f"data: {data}"]+[f"{k}: {str(v).lower() if isinstance(v,bool) else v}" for k,v in (base|R|keys).items()]
        Path(f"/work/main/notebooks/experiments/{name}.yaml").write_text("\n".join(lines)+"\n")
