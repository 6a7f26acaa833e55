import torch
from _base import Bad, LossTests, Sample, random

from tta_restore import losses


class TestSiameseConsistencyLoss(LossTests):
    op = losses.siamese_consistency_loss
    module = losses.SiameseConsistencyLoss
    jvp = "right"

    def samples(self, generator):
        return [Sample(tuple(random(2, 3, 4, 5, generator=generator) for _ in range(2)), frozen=(1,))]

    def bad(self):
        image = torch.zeros(1, 3, 4, 4)
        return [
            Bad((image, image[:, :1]), ValueError, "expected teacher of shape"),
            Bad((image.long(), image), TypeError, "expected student with a floating dtype"),
        ]

    def equal(self, generator):
        image = random(1, 3, 4, 4, generator=generator)
        return Sample((image, image.clone()), frozen=(1,))

    def test_jvp(self, device, generator):
        student, teacher = self.on(device, generator)[0].tensors
        direction = random(*student.shape, generator=generator, low=-1, high=1).to(device)
        _, found = torch.func.jvp(lambda s: self.call(s, teacher), (student,), (direction,))
        ahead, behind = (self.call(student + step * direction, teacher) for step in (1e-6, -1e-6))
        torch.testing.assert_close(found, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-6)


def test_the_teacher_gets_no_gradient():
    student = torch.tensor([0.2, 0.9], requires_grad=True)
    teacher = torch.tensor([0.5, 0.5], requires_grad=True)
    loss = losses.siamese_consistency_loss(student, teacher)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(0.35))
    assert student.grad.tolist() == [-0.5, 0.5]
    assert teacher.grad is None
