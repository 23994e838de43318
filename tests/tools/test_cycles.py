"""Cycles are those that the compiler writes, each as often as it runs."""

import pytest

from tools.measuring import cycles

PROGRAM = """
HloModule jit_step
%product (a: f32[8,8]) -> f32[8,8] {
  %inner = f32[8,8] convolution(%a, %a), dim_labels=bf_io->bf, backend_config={"estimated_cycles":"999"}
}
%holds (a: f32[8,8]) -> f32[8,8] {
  %deeper = f32[8,8] fusion(%a), kind=kOutput, calls=%product
}
%rows (a: f32[8,8]) -> f32[8,8] {
  %g = f32[8,8] gather(%a, %i)
}
%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %m = f32[8,8] fusion(%p), calls=%holds, metadata={op_name="jit(f)/jvp(Jet)/while/body/vit/block0_mlp/up/dot_general"}, x={"estimated_cycles":"100"}
  %n = f32[8,8] fusion(%p), calls=%holds, metadata={op_name="jit(f)/transpose(jvp(Jet))/while/body/checkpoint/vit/block1_mlp/up/dot_general"}, x={"estimated_cycles":"50"}
  %copy.1 = f32[8,8] copy(%m), x={"estimated_cycles":"10"}
  %e = f32[8,8] add(%m, %m), metadata={op_name="jit(f)/gather"}, x={"estimated_cycles":"5"}
  %f = f32[8,8] fusion(%m), calls=%rows
}
%limit (p: (s32[], f32[8,8])) -> pred[] {
  %c = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %c), direction=LT
}
%cheap (p: f32[8,8]) -> f32[8,8] {
  %s = f32[8,8] add(%p, %p), x={"estimated_cycles":"7"}
}
%costly (p: f32[8,8]) -> f32[8,8] {
  %t = f32[8,8] multiply(%p, %p), x={"estimated_cycles":"20"}
}
ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %w = (s32[], f32[8,8]) while(%init), condition=%limit, body=%body
  %k = f32[8,8] conditional(%b, %x, %x), branch_computations={%cheap, %costly}
  ROOT %z = f32[8,8] scatter(%x, %i, %u), to_apply=%add
}
"""  # noqa: E501


def test_loops_count_as_often_as_they_run_and_of_a_branch_the_costlier_side():
  counted = cycles.cycles(PROGRAM)
  assert counted["in_loops"] == {"matmul": 3 * 150, "copies": 3 * 10, "elementwise": 3 * 5, "indexed": 1}
  assert counted["outside"] == {"matmul": 0, "copies": 0, "elementwise": 20, "indexed": 1}
  assert counted["total"] == 3 * 165 + 20


def test_a_part_of_the_model_has_its_forward_and_backward_cycles_and_those_of_all_blocks():
  scopes = cycles.cycles(PROGRAM)["scopes"]
  assert next(iter(scopes.items())) == ("vit/block_mlp/up/dot_general", 3 * 150)
  assert sum(scopes.values()) == 3 * 165 + 20


@pytest.mark.parametrize("branches", ["true_computation=%cheap, false_computation=%costly", ""])
def test_branches_may_be_written_in_another_way_or_be_missing(branches):
  counted = cycles.cycles(PROGRAM.replace("branch_computations={%cheap, %costly}", branches))
  assert counted["outside"]["elementwise"] == (20 if branches else 0)


def test_a_compiler_without_estimates_has_no_cycles():
  assert cycles.cycles(PROGRAM.replace("estimated_cycles", "nothing")) == {}
