"""A model becomes a program: its forward runs once on meta tensors, and every call of torch becomes an fx node.

trace.py                 the entry: `trace(model, example_inputs)`
tracer.py                the function mode that writes the graph
  meta_model.py          the copy of the model that it runs; rebinding.py what the copy's attributes become
  calls.py               how a call is spelled as a node; containers.py what it is given and gives back
  symbolic_numbers.py    sizes that stay in the graph
  shape_inference.py     what a call gives on the meta device
  constant_folding.py    values that don't depend on the input; data_dependent.py where code asks for a value
  training_flag.py       the flag `training` as a value of the graph
  patches.py             what is put in torch's place during a trace
  lowering.py            layers that are written out: nn.MultiheadAttention
  locations.py           the user's line that a node comes from
before                   parametrizations.py: weight norm and its like become plain weights
after                    weight_folding.py: weights that forward computes become plain weights
                         dynamic_batch.py, batch_dim.py: numbers follow the batch; no view cuts samples apart
both_modes.py            eval mode and train mode in one program: joint_graph.py, value_numbering.py
"""
