//! I17: after its deadline nothing leaves a node for a client: no two gates are open at the same time.

use crate::ctx::Ctx;
use crate::node::{Node, Process, Role};

/// All gates, on the world's clock.
pub(crate) fn gates(ctx: &Ctx, nodes: &[Node]) -> Result<(), String> {
    let mut open = None;
    for node in nodes {
        let Some(process) = &node.process else { continue };
        let Role::Leading(leading) = &process.role else { continue };
        if leading.gate_is_open(ctx, node.index)
            && let Some(other) = open.replace(node.index)
        {
            return Err(format!("I17: the gates of n{other} and n{} are open at once", node.index));
        }
    }
    Ok(())
}

/// Something is about to be told to clients.
pub(crate) fn answers(ctx: &Ctx, process: &Process) -> Result<(), String> {
    let Role::Leading(leading) = &process.role else { return Ok(()) };
    let (now, deadline) = (ctx.local_ms(process.index), leading.gate_until());
    if now < deadline {
        return Ok(());
    }
    Err(format!("I17: n{} confirms at {now}, its grant is sure until {deadline}", process.index))
}
